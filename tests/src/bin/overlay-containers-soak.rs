//! overlay-containers-soak: one row of the containers' figures per call; `cargo lab soak containers` starts it.

use overlay_tests::containers::ROWS;
use overlay_tests::figures;
use std::process::ExitCode;

fn main() -> ExitCode {
    figures::program(ROWS)
}
