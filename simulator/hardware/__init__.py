"""What a simulated worker runs on: measured speeds and sizes, as small JSON files beside the code.

`description` reads them; `python -m simulator.hardware.fit PROFILES` writes them anew.
"""
