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
study=$1 run=$2
cd "$SLURM_SUBMIT_DIR" || exit 2
# source venv/bin/activate

# An array (sbatch --array=0-3) is a study each: run=$run-$SLURM_ARRAY_TASK_ID, and other seeds by --set seed=...
if [ -e "$run/study.yaml" ]; then
  parsl-rasda resume --wait "$run"   # --wait: of a job that was requeued, the last controller may seem alive
else
  parsl-rasda run "$study" --site site.yaml --dir "$run"
fi
code=$?
if [ "$code" -eq 130 ]; then         # the allocation ends, and everything is saved
  sbatch slurm.sh "$study" "$run"
fi
exit "$code"
