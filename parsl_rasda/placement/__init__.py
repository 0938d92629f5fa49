"""On which GPUs: the ledger of slots and the growth policies; pure.

Read `ledger` (what is free), then `cluster_state` (who waits, who runs), then `growth` (who gets what).
"""
