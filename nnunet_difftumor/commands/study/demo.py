"""`difftumor demo`: all stages on a small data set, and a report."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunet_difftumor.support.processes.logged_command import ending_on_sigterm

REAL_DATA_VARIABLE = "DIFFTUMOR_REAL_CT"
DESCRIPTION = """Run all stages on a small data set and write report.html.

It types the commands that a user would type: data, train-autoencoder, train-diffusion, synthesize,
nnUNetv2_plan_and_preprocess, nnUNetv2_train -tr nnUNetTrainerDiffTumor, nnUNetv2_predict, score.

  --data phantom  a CT phantom, made on the spot; 7 to 15 minutes on two CPU cores
  --data real     the real CT in the folder named by DIFFTUMOR_REAL_CT; about 45 minutes on two CPU cores

Run it again with the same --output to go on after an interruption: finished stages are skipped."""
EXAMPLE = "difftumor demo --data phantom --output demo_output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--data", choices=("phantom", "real"), default="phantom", help="what to run on (phantom)")
    add("--output", type=Path, default=None, metavar="DIR", help="folder for everything (default demo_output/DATA)")
    add("--fresh", action="store_true", help="remove what an earlier demo made in --output and start over")
    add("--quick", action="store_true", help="as short as possible: shows that the commands fit, teaches nothing")
    add("--report-only", action="store_true", help="write the report of what is there, run nothing")


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    import torch

    from nnunet_difftumor.demo.layout import DemoFolder
    from nnunet_difftumor.demo.report import write_report
    from nnunet_difftumor.demo.settings import demo_settings
    from nnunet_difftumor.demo.steps import Demo

    settings = demo_settings(args.data, is_quick=args.quick)
    output = args.output if args.output is not None else Path("demo_output") / args.data
    folder = DemoFolder(output.resolve(), settings.dataset_folder_name)
    if args.fresh and not args.report_only:
        folder.remove()
    folder.open(settings, is_quick=args.quick)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    real_data = os.environ.get(REAL_DATA_VARIABLE)
    demo = Demo(folder, settings, device, Path(real_data) if real_data else None)
    if not args.report_only:
        print(demo.exports())
        with ending_on_sigterm():
            demo.run()
    print(f"\nReport: {write_report(folder, settings)}")
    return 0
