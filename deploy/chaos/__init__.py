"""Load with random harm: every answer must be the undisturbed one, and nothing may be left over.

A round is drawn from one seed (plan, drawing), its right answers are computed by one engine
alone (oracle), then callers ask (caller) while strikes strike (strikes); rounds.py runs it.
"""
