#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=FOLDER/NAME.stdout
#SBATCH --error=FOLDER/NAME.stderr
#SBATCH --nodes=2
#SBATCH --time=240
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --exclusive
#SBATCH --partition=gpu
#SBATCH --account=project
#SBATCH --gpus-per-node=4
export PARSL_RASDA_BEGAN=$(date +%s)
source /venv/bin/activate
echo ours
export JOBNAME="NAME"
pool --flag
# sbatch FOLDER/NAME
