"""ON THE RANKS: trials trained by somebody else's loop.

Each module needs its library, and nothing else imports them. Reading order: `loop` (a trial from the hooks of
a Trainer, its batches and its learning rate), then `lightning`, `huggingface` or `accelerate`.
`docs/integrations.md` shows each as a diff.
"""
