"""TEST DOUBLE, never deploy."""

import threading

queue_lock = threading.Lock()
