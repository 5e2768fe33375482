"""What ``genqueue doctor`` finds: facts are gathered, then judged."""
