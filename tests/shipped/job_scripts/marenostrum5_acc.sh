#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=FOLDER/NAME.stdout
#SBATCH --error=FOLDER/NAME.stderr
#SBATCH --nodes=4
#SBATCH --time=360
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --partition=acc
#SBATCH --account=project
#SBATCH --qos=acc_ehpc
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=80
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_d62cdcc5:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_d62cdcc5" | base64 -d)"
unset PARSL_RASDA_INIT_d62cdcc5
echo ours
export PARSL_CORES=80
export JOBNAME="NAME"
pool --flag
# sbatch FOLDER/NAME
