"""What `ablation` needs: studies, runs, verdicts, table and figures."""
