#!/bin/bash
#PBS -S /bin/bash
#PBS -N NAME
#PBS -m n
#PBS -l walltime=03:00:00
#PBS -l select=4:ncpus=208
#PBS -o FOLDER/NAME.stdout
#PBS -e FOLDER/NAME.stderr
#PBS -l filesystems=home:flare
#PBS -l place=scatter
export PARSL_RASDA_BEGAN=$(date +%s)
module load frameworks; source /venv/bin/activate
echo ours
export JOBNAME="NAME"
pool --flag
# qsub -q prod -A project FOLDER/NAME
