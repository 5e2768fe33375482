"""``python -m genqueue_lab.chaos.clock SECONDS ARGUMENTS…``: genqueue on a host whose clock is wrong.

``time.time`` is so many seconds ahead, or behind; what Celery and genqueue import of it afterwards is
this one.  (Under libfaketime Python cannot sleep.)
"""

import sys
import time

if __name__ == "__main__":
    real, ahead_s = time.time, float(sys.argv[1])
    time.time = lambda: real() + ahead_s
    sys.argv = ["genqueue", *sys.argv[2:]]
    from genqueue.cli.app import main

    main()
