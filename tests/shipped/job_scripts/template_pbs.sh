#!/bin/bash
#PBS -S /bin/bash
#PBS -N NAME
#PBS -m n
#PBS -l walltime=04:00:00
#PBS -l select=2:ncpus=32:ngpus=4
#PBS -o FOLDER/NAME.stdout
#PBS -e FOLDER/NAME.stderr
#PBS -l place=scatter:excl
export PARSL_RASDA_BEGAN=$(date +%s)
source /venv/bin/activate
echo ours
export JOBNAME="NAME"
pool --flag
# qsub -q gpu -A project FOLDER/NAME
