#!/bin/bash
#PBS -S /bin/bash
#PBS -N NAME
#PBS -m n
#PBS -l walltime=168:00:00
#PBS -l select=1:ncpus=1:system=polaris
#PBS -o FOLDER/NAME.stdout
#PBS -e FOLDER/NAME.stderr
#PBS -l filesystems=home:eagle
#PBS -v PARSL_RASDA_INIT_710b567c
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_710b567c:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_710b567c" | base64 -d)"
unset PARSL_RASDA_INIT_710b567c
echo ours
export JOBNAME="NAME"
pool --flag
# qsub -q capacity -A project FOLDER/NAME
