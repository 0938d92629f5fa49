#!/bin/bash
#PBS -S /bin/bash
#PBS -N NAME
#PBS -m n
#PBS -l walltime=04:00:00
#PBS -l select=2:ncpus=32:ngpus=4
#PBS -o FOLDER/NAME.stdout
#PBS -e FOLDER/NAME.stderr
#PBS -l place=scatter:excl
#PBS -v PARSL_RASDA_INIT_3c246732
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_3c246732:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_3c246732" | base64 -d)"
unset PARSL_RASDA_INIT_3c246732
echo ours
export JOBNAME="NAME"
pool --flag
# qsub -q gpu -A project FOLDER/NAME
