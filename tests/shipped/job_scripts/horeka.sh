#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=FOLDER/NAME.stdout
#SBATCH --error=FOLDER/NAME.stderr
#SBATCH --nodes=2
#SBATCH --time=360
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --exclusive
#SBATCH --partition=gpu-h100
#SBATCH --account=project
#SBATCH --gres=gpu:4
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_12c85504:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_12c85504" | base64 -d)"
unset PARSL_RASDA_INIT_12c85504
echo ours
export JOBNAME="NAME"
pool --flag
# sbatch FOLDER/NAME
