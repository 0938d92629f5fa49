#!/bin/bash
# A whole study in allocations of PBS's, one after another until it ends. Copy this beside site.yaml, then
#   qsub -v STUDY=study.yaml,RUN=runs/first pbs.sh
#PBS -N study
#PBS -l select=2:ncpus=32:ngpus=4
#PBS -l place=scatter:excl
#PBS -l walltime=04:00:00
#PBS -r y
#PBS -j oe
# #PBS -q gpu
# #PBS -A project
cd "$PBS_O_WORKDIR" || exit 2
# source venv/bin/activate

# In an array (qsub -J 0-3) each job is a study, in RUN-0 and so on. For other seeds, add
# --set seed="$PBS_ARRAY_INDEX" to `run`.
RUN=$RUN${PBS_ARRAY_INDEX:+-$PBS_ARRAY_INDEX}
if [ -e "$RUN/study.yaml" ]; then
  parsl-rasda resume --wait "$RUN"   # --wait: of a job that was rerun, the last controller may seem alive
else
  parsl-rasda run "$STUDY" --site site.yaml --dir "$RUN"
fi
code=$?
if [ "$code" -eq 130 ]; then         # the allocation ends, and everything is saved
  qsub -v "STUDY=$STUDY,RUN=$RUN" pbs.sh
fi
exit "$code"
