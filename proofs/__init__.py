"""One file a theorem group: statement, scope, steps, counterexamples, check()."""
