#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=FOLDER/NAME.stdout
#SBATCH --error=FOLDER/NAME.stderr
#SBATCH --nodes=4
#SBATCH --time=360
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --partition=gh
#SBATCH --account=project
#SBATCH --cpus-per-task=72
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_10a48d61:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_10a48d61" | base64 -d)"
unset PARSL_RASDA_INIT_10a48d61
echo ours
export PARSL_CORES=72
export JOBNAME="NAME"
pool --flag
# sbatch FOLDER/NAME
