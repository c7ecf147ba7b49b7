"""The tables of BEFT run again: which runs a table needs, running them, and the paper's figures beside the measured."""
