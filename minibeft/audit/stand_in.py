"""Where certify does not know a configuration, audit measures it: on transformers' model, small and random."""

from importlib.util import find_spec
from pathlib import Path

from minibeft.audit.audit import Report, audit
from minibeft.certificate.certify import Certificate
from minibeft.certificate.model_files import load_config
from minibeft.errors import BadInput


def measured_instead(model: str | Path, certificate: Certificate) -> Report | None:
    """The measurement in place of an unknown verdict, or None.

    None where certify has a verdict, where there is an adapter (audit does not run adapters), where transformers is not
    installed, and where it has no model that can be run.
    """
    if certificate.unclear is None or load_config(model).adapter is not None or find_spec("transformers") is None:
        return None
    try:
        return audit(str(model), random=True)
    except BadInput:
        return None
