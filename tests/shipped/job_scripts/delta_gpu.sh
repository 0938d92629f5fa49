#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=FOLDER/NAME.stdout
#SBATCH --error=FOLDER/NAME.stderr
#SBATCH --nodes=2
#SBATCH --time=360
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --exclusive
#SBATCH --partition=gpuA100x4
#SBATCH --account=project
#SBATCH --constraint=scratch
#SBATCH --gpus-per-node=4
#SBATCH --mem=208g
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_6b3a6b2c:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_6b3a6b2c" | base64 -d)"
unset PARSL_RASDA_INIT_6b3a6b2c
echo ours
export PARSL_MEMORY_GB=208
export JOBNAME="NAME"
pool --flag
# sbatch FOLDER/NAME
