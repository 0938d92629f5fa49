"""ATTEMPT: one attempt to train a trial, as its controller sees it. Never imports torch.

Reading order: `launch_context` (which rank a process is), `channel` (how rank 0 and the controller talk),
`attempt` (what was ordered, what is reported, why the job leaves), `boundary` (what happens between epochs).
"""
