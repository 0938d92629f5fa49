#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=FOLDER/NAME.stdout
#SBATCH --error=FOLDER/NAME.stderr
#SBATCH --nodes=4
#SBATCH --time=360
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --partition=gpu
#SBATCH --account=project
#SBATCH --qos=default
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=64
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_7c2c77f6:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_7c2c77f6" | base64 -d)"
unset PARSL_RASDA_INIT_7c2c77f6
echo ours
export PARSL_CORES=64
export JOBNAME="NAME"
pool --flag
# sbatch FOLDER/NAME
