#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=FOLDER/NAME.stdout
#SBATCH --error=FOLDER/NAME.stderr
#SBATCH --nodes=1
#SBATCH --time=360
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --account=project
#SBATCH --qos=shared
#SBATCH --constraint=cpu
#SBATCH --cpus-per-task=1
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_41fac042:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_41fac042" | base64 -d)"
unset PARSL_RASDA_INIT_41fac042
echo ours
export PARSL_CORES=1
export JOBNAME="NAME"
pool --flag
# sbatch FOLDER/NAME
