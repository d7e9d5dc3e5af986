//! One compose file on two hosts: what `overlayctl plugin docker install` writes, and names across hosts by it.

use overlay_netns_harness::wait_for;

use super::engine::Docker;
use super::{LIMIT, nothing_left, overlay};

/// The example, as anybody runs it.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/compose.yml");
const DAEMON_JSON: &str = "/etc/docker/daemon.json";

impl Docker<'_> {
    /// `overlayctl` in the host's namespaces, where dockerd's files are.
    fn ctl(&self, words: &[&str]) -> String {
        let program = self.lab().binary("overlayctl").unwrap();
        let output = self.command(&[&[program.as_str()], words].concat()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "{words:?}: {said}");
        said
    }

    fn file(&self, path: &str) -> Option<String> {
        let output = self.command(&["cat", path]).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn compose(&self, words: &[&str]) {
        let all = [&["docker-compose", "-p", "shop", "-f", FILE], words].concat();
        let output = self.command(&all).output().unwrap();
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), self.logs());
    }
}

#[test]
fn services_of_one_compose_file_on_two_hosts_find_each_other_by_name() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let old = "{\n  \"debug\": false}";
    let mut hosts = ["h1", "h2"].map(|host| Docker::new(&overlay.lab, host));
    for docker in &mut hosts {
        let write = format!("printf '%s' '{old}' > {DAEMON_JSON}");
        assert!(docker.command(&["sh", "-c", &write]).status().unwrap().success());
        let said = docker.ctl(&["plugin", "docker", "install", "--no-units"]);
        assert!(said.contains("+   \"dns\": [") && said.contains("ctr.overlay.internal"), "{said}");
        assert!(docker.ctl(&["plugin", "docker", "install", "--no-units"]).contains("unchanged"));
        docker.start_plugin();
        docker.start_dockerd(&[]);
        docker.import_box();
        docker.run("tag box shop/web");
        docker.run("tag box shop/client");
    }
    let [one, two] = &hosts;
    // The same file on both; each host has one of the services.
    one.compose(&["up", "-d", "--no-build", "web"]);
    two.compose(&["up", "-d", "--no-build", "client"]);
    let address = one.address("shop_web_1", "shop_default");
    assert!(address.starts_with("10.42.1."), "{address}");
    let told = two.run("exec shop_client_1 cat /etc/resolv.conf");
    assert!(told.contains("ctr.overlay.internal"), "{told}");
    // By the service's name and by the container's, with the search domain that Docker hands out.
    for name in ["web.ctr.overlay.internal", "shop_web_1.ctr.overlay.internal"] {
        let is_told = || {
            let output = two.output(&format!("exec shop_client_1 nslookup {name}"));
            String::from_utf8_lossy(&output.stdout).contains(&address).then_some(())
        };
        wait_for(&format!("{name} to be told"), LIMIT, is_told).unwrap();
    }
    let page = two.fetch("shop_client_1", &address);
    assert!(page.ends_with("the page"), "{page:?}");
    // What is of nobody's network does not reach them.
    assert!(!overlay.reaches("h2c1", address.parse().unwrap()));
    for (docker, host) in hosts.iter().zip(["h1", "h2"]) {
        docker.compose(&["down"]);
        nothing_left(&overlay, host);
        let said = docker.ctl(&["plugin", "docker", "remove", "--no-units"]);
        assert!(said.contains("-   \"dns\": ["), "{said}");
        assert_eq!(docker.file(DAEMON_JSON).as_deref(), Some(old));
        assert_eq!(docker.file("/etc/docker/daemon.json.before-overlayd"), None);
    }
}
