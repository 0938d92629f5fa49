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
source /venv/bin/activate
echo ours
export JOBNAME="NAME"
pool --flag
# sbatch FOLDER/NAME
