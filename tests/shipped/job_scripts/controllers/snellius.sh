#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=FOLDER/NAME.stdout
#SBATCH --error=FOLDER/NAME.stderr
#SBATCH --nodes=1
#SBATCH --time=7200
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --partition=genoa
#SBATCH --cpus-per-task=1
export PARSL_RASDA_BEGAN=$(date +%s)
: "${PARSL_RASDA_INIT_167f2601:?did not come with the job, so the variables of worker_init are unknown: see SECURITY.md}"
eval "$(printf %s "$PARSL_RASDA_INIT_167f2601" | base64 -d)"
unset PARSL_RASDA_INIT_167f2601
echo ours
export PARSL_CORES=1
export JOBNAME="NAME"
pool --flag
# sbatch FOLDER/NAME
