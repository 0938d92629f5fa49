#!/bin/bash
# A whole study in allocations of Slurm's, one after another until it ends. Copy this beside site.yaml, then
#   sbatch slurm.sh STUDY.yaml RUN_DIRECTORY
#SBATCH --job-name=study
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# #SBATCH --partition=gpu
# #SBATCH --account=project
# In an array (sbatch --array=0-3) each task is a study, in RUN_DIRECTORY-0 and so on. For other seeds, add
# --set seed="$SLURM_ARRAY_TASK_ID" to `run`.
study=$1 run=$2${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}
cd "$SLURM_SUBMIT_DIR" || exit 2
# source venv/bin/activate

if [ -e "$run/study.yaml" ]; then
  parsl-rasda resume --wait "$run"   # --wait: of a job that was requeued, the last controller may seem alive
else
  parsl-rasda run "$study" --site site.yaml --dir "$run"
fi
code=$?
if [ "$code" -eq 130 ]; then         # the allocation ends, and everything is saved
  env -u SLURM_ARRAY_TASK_ID sbatch slurm.sh "$study" "$run"   # which is in no array, but would inherit it
fi
exit "$code"
