"""ENGINE: what one step of training is, and how it is computed with the same bits at any world size.

Reading order: `replicas` and `learning_rate` (what a step is, as pure functions), `group` (the ranks and
their collectives), `reduction` (how gradients are added), `exact_tree` and `overlapped_sum` (the two ways),
`tree`, `exchange`, `arrivals`, `tail`, `flat` and `beside` (what they are made of), `exact_mean`, `buffers`,
`datasets` and `seeding` (what else must not depend on the ranks), `forward` and `rank_device` (precision,
compilation, devices), `sharding` (models larger than one GPU), `training_state` (what a checkpoint holds),
`engine` (all of it together).

Only `group`, `exact_mean`, `learning_rate`, `replicas` and `seeding` can be imported without torch.
"""
