#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=FOLDER/NAME.stdout
#SBATCH --error=FOLDER/NAME.stderr
#SBATCH --nodes=4
#SBATCH --time=360
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --gpu-bind=none
#SBATCH --exclusive
#SBATCH --account=project
#SBATCH --qos=regular
#SBATCH --constraint=gpu
#SBATCH --gpus-per-node=4
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_41fac042:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_41fac042" | base64 -d)"
unset PARSL_RASDA_INIT_41fac042
echo ours
export JOBNAME="NAME"
pool --flag
# sbatch FOLDER/NAME
