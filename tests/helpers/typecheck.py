"""How annotations are checked in the suite: an int is a float, as in PEP 484 and in everybody's code."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
