//! overlay-docker: networks of Docker on the overlay (`docker network create -d overlayd --ipam-driver overlayd NAME`).

use std::path::PathBuf;
use std::process::ExitCode;

use overlay_plugins::docker::{self, Places};

const HELP: &str = "\
overlay-docker: network and IPAM driver `overlayd` for Docker

Started by systemd (overlay-docker.socket) at dockerd's first call; see `overlayctl plugin docker install`.

  --listen PATH   the socket to make where systemd gives none
  --socket PATH   the control socket of overlayd
  --docker PATH   dockerd's socket
  --state DIR     where to remember what dockerd said
  --version, --help
";

fn main() -> ExitCode {
    let mut places = Places {
        listen: docker::PLUGIN_SOCKET.into(),
        control: "/run/overlay/overlayd.sock".into(),
        docker: docker::DOCKER_SOCKET.into(),
        state: docker::STATE_DIR.into(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let place = match word.as_str() {
            "--version" | "-V" => {
                println!("overlay-docker {}", env!("CARGO_PKG_VERSION"));
                return ExitCode::SUCCESS;
            }
            "--help" | "-h" => {
                print!("{HELP}");
                return ExitCode::SUCCESS;
            }
            "--listen" => &mut places.listen,
            "--socket" => &mut places.control,
            "--docker" => &mut places.docker,
            "--state" => &mut places.state,
            _ => {
                eprintln!("error[USAGE]: {word:?} is not an option\nnext:  overlay-docker --help");
                return ExitCode::from(2);
            }
        };
        let Some(value) = words.next() else {
            eprintln!("error[USAGE]: {word} needs a value\nnext:  overlay-docker --help");
            return ExitCode::from(2);
        };
        *place = PathBuf::from(value);
    }
    let Err(error) = docker::serve(&places);
    eprintln!(
        "error[IO]: the Docker plugin cannot go on\nwhy:   {error}\nnext:  check the paths in `overlay-docker --help`"
    );
    ExitCode::FAILURE
}
