"""What an endpoint says of an error, in whichever shape it says it, as facts; :mod:`upstream.faults` judges them."""
