#!/bin/bash
#PBS -S /bin/bash
#PBS -N NAME
#PBS -m n
#PBS -l walltime=12:00:00
#PBS -l select=1:ncpus=1
#PBS -o FOLDER/NAME.stdout
#PBS -e FOLDER/NAME.stderr
#PBS -l filesystems=home:flare
#PBS -v PARSL_RASDA_INIT_7d247509
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_7d247509:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_7d247509" | base64 -d)"
unset PARSL_RASDA_INIT_7d247509
echo ours
export JOBNAME="NAME"
pool --flag
# qsub -q capacity -A project FOLDER/NAME
