#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=FOLDER/NAME.stdout
#SBATCH --error=FOLDER/NAME.stderr
#SBATCH --nodes=4
#SBATCH --time=120
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --network=disable_rdzv_get
#SBATCH --partition=batch
#SBATCH --account=project
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=56
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_340d280f:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_340d280f" | base64 -d)"
unset PARSL_RASDA_INIT_340d280f
echo ours
export PARSL_CORES=56
export JOBNAME="NAME"
pool --flag
# sbatch FOLDER/NAME
