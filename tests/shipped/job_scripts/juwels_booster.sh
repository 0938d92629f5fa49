#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=FOLDER/NAME.stdout
#SBATCH --error=FOLDER/NAME.stderr
#SBATCH --nodes=4
#SBATCH --time=360
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --partition=booster
#SBATCH --account=project
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=48
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_4bf36f5e:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_4bf36f5e" | base64 -d)"
unset PARSL_RASDA_INIT_4bf36f5e
echo ours
export PARSL_CORES=48
export JOBNAME="NAME"
pool --flag
# sbatch FOLDER/NAME
