"""What `test_on_two_processes.py` starts is no test: nothing here is so much as imported by pytest."""

collect_ignore_glob = ["*.py"]
