//! What dockerd 20.10 was recorded to send, call by call, replayed against the plugin: all of it is answered in time and as
//! dockerd needs it. Addresses, pools and address spaces are those that this plugin gave.

use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::engine::{Docker, call};
use super::{nothing_left, overlay};

/// Every call is answered within this time, by the promise of the plugin.
const ANSWER: Duration = Duration::from_secs(3);

#[derive(Deserialize)]
struct Scenario {
    scenario: String,
    about: String,
    calls: Vec<Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
    path: String,
    body: Value,
    #[serde(default)]
    reply: Value,
    /// The plugin of the recording refused.
    #[serde(default)]
    refused: bool,
}

/// dockerd's own API as far as the plugin asks it: names of networks.
struct Names(PathBuf);

impl Names {
    fn serve(socket: PathBuf) -> Names {
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { break };
                let mut line = String::new();
                let _ = BufReader::new(&stream).read_line(&mut line);
                let path = line.split(' ').nth(1).unwrap_or_default();
                if path == "/end" {
                    break;
                }
                let answer = match path.strip_prefix("/networks/") {
                    Some(id) => {
                        let name = format!("recorded-{}", &id[..12.min(id.len())]);
                        format!("HTTP/1.0 200 OK\r\n\r\n{}", json!({ "Name": name, "Containers": {} }))
                    }
                    None => "HTTP/1.0 404 Not Found\r\n\r\n{}".to_owned(),
                };
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Names(socket)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        if let Ok(mut stream) = std::os::unix::net::UnixStream::connect(&self.0) {
            let _ = stream.write_all(b"GET /end HTTP/1.0\r\n\r\n");
        }
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A pool of ours for a recorded one.
#[derive(Clone)]
struct Pool {
    id: Value,
    prefix: String,
    /// The number of the part of the host's prefix, where dockerd named one.
    part: Option<u16>,
}

/// What stands for what, in one scenario.
#[derive(Default)]
struct Replay {
    pools: BTreeMap<String, Pool>,
    /// Recorded address to ours, as we wrote it.
    addresses: BTreeMap<IpAddr, String>,
    networks: BTreeSet<String>,
    /// Every pool of ours.
    asked: Vec<Value>,
    /// Parts of the host's prefixes given so far, of each family.
    next: [u16; 2],
}

fn alone(text: &str) -> Option<IpAddr> {
    text.split('/').next().unwrap_or_default().parse().ok()
}

/// A part of the host's prefix, and an address in it by its number.
fn part(number: u16, v6: bool) -> (String, String) {
    if v6 {
        (format!("fd42:0:0:1:{:x}::/80", 0x100 + number), format!("fd42:0:0:1:{:x}:8000::/81", 0x100 + number))
    } else {
        let first = 32 * (1 + number % 6);
        (format!("10.42.1.{first}/27"), format!("10.42.1.{}/28", first + 16))
    }
}

/// In the upper half: what was given by itself a scenario ago rests in the lower one.
fn nth(number: u16, recorded: IpAddr) -> IpAddr {
    match recorded {
        IpAddr::V4(ip) => Ipv4Addr::new(10, 42, 1, (32 * (1 + number % 6)) as u8 + 16 + ip.octets()[3] % 16).into(),
        IpAddr::V6(ip) => Ipv6Addr::new(0xfd42, 0, 0, 1, 0x100 + number, 0, 0, ip.segments()[7]).into(),
    }
}

impl Replay {
    /// The body as dockerd would have sent it to us; `None` when it is about something that the recording never got.
    fn translate(&mut self, path: &str, recorded: &Value) -> Option<Value> {
        let mut body = recorded.clone();
        let object = body.as_object_mut()?;
        if let Some(space) = object.get_mut("AddressSpace") {
            *space = json!("overlayd");
        }
        if let Some(id) = object.get_mut("PoolID") {
            let known = self.pools.get(id.as_str()?)?.clone();
            *id = known.id.clone();
            let text = object.get("Address").and_then(Value::as_str).unwrap_or_default().to_owned();
            if let Some(address) = alone(&text) {
                let ours = match (path, known.part) {
                    ("/IpamDriver.RequestAddress", Some(part)) => nth(part, address).to_string(),
                    _ => alone(self.addresses.get(&address)?)?.to_string(),
                };
                object.insert("Address".into(), json!(ours));
            }
        }
        for key in ["IPv4Data", "IPv6Data"] {
            for data in object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
                let recorded = data["Pool"].as_str()?.to_owned();
                let pool = self.pools.values().zip(self.pools.keys()).find(|(_, id)| id.ends_with(&recorded))?.0;
                data["AddressSpace"] = json!("overlayd");
                data["Pool"] = json!(pool.prefix);
                data["Gateway"] = json!(self.addresses.get(&alone(data["Gateway"].as_str()?)?)?);
                for (_, address) in data.get_mut("AuxAddresses").and_then(Value::as_object_mut).into_iter().flatten() {
                    *address = json!(self.addresses.get(&alone(address.as_str()?)?)?);
                }
            }
        }
        if let Some(interface) = object.get_mut("Interface").and_then(Value::as_object_mut) {
            for key in ["Address", "AddressIPv6"] {
                if let Some(recorded) = alone(interface[key].as_str()?) {
                    interface.insert(key.into(), json!(self.addresses.get(&recorded)?));
                }
            }
        }
        Some(body)
    }

    /// Plays one call; what our plugin said.
    fn play(&mut self, socket: &Path, recorded: &Recorded) -> Option<(Value, Value)> {
        let path = recorded.path.as_str();
        if path == "/IpamDriver.RequestPool" {
            return self.request_pool(socket, recorded);
        }
        let body = match recorded.body.is_null() {
            true => String::new(),
            false => self.translate(path, &recorded.body)?.to_string(),
        };
        let answer = timed(socket, path, &body);
        let sent = serde_json::from_str(&body).unwrap_or_default();
        if path == "/IpamDriver.RequestAddress"
            && let (Some(theirs), Some(ours)) = (recorded.reply["Address"].as_str(), answer["Address"].as_str())
        {
            self.addresses.insert(alone(theirs)?, ours.to_owned());
        }
        if path == "/NetworkDriver.CreateNetwork" {
            self.networks.insert(recorded.body["NetworkID"].as_str()?.to_owned());
        }
        Some((sent, answer))
    }

    fn request_pool(&mut self, socket: &Path, recorded: &Recorded) -> Option<(Value, Value)> {
        let mut body = self.translate(&recorded.path, &recorded.body)?;
        let (v6, named) = (body["V6"] == true, body["Pool"] != "");
        let part_number = named.then(|| {
            let next = &mut self.next[usize::from(v6)];
            *next += 1;
            *next
        });
        if let Some(number) = part_number {
            let (pool, range) = part(number, v6);
            body["Pool"] = json!(pool);
            if body["SubPool"] != "" {
                body["SubPool"] = json!(range);
            }
        }
        let answer = timed(socket, &recorded.path, &body.to_string());
        self.asked.push(answer["PoolID"].clone());
        let id = recorded.reply["PoolID"].as_str()?.to_owned();
        let prefix = answer["Pool"].as_str().unwrap_or_default().to_owned();
        self.pools.insert(id, Pool { id: answer["PoolID"].clone(), prefix, part: part_number });
        Some((body, answer))
    }

    /// What the recording left goes, as when dockerd is not there any more.
    fn end(&self, socket: &Path) {
        for network in &self.networks {
            timed(socket, "/NetworkDriver.DeleteNetwork", &json!({ "NetworkID": network }).to_string());
        }
        for id in self.asked.iter().filter(|id| id.is_string()) {
            timed(socket, "/IpamDriver.ReleasePool", &json!({ "PoolID": id }).to_string());
        }
    }
}

fn timed(socket: &Path, path: &str, body: &str) -> Value {
    let began = Instant::now();
    let (status, answer) = call(socket, path, body);
    assert!(began.elapsed() < ANSWER, "{path} took {:?}: {body}", began.elapsed());
    assert_eq!(status, 200, "{path} {body}: {answer}");
    assert_eq!(answer.get("Err"), answer.get("Error"), "both kinds of drivers are told: {answer}");
    answer
}

/// Takes the options out that were made up for the recording; whether there were any. Ours are refused by name.
fn without_made_up(body: &mut Value) -> bool {
    let mut found = false;
    for pointer in ["/Options", "/Options/com.docker.network.generic"] {
        if let Some(options) = body.pointer_mut(pointer).and_then(Value::as_object_mut) {
            let before = options.len();
            options.retain(|key, _| !["pool.key", "overlay.key"].contains(&key.as_str()));
            found |= options.len() != before;
        }
    }
    found
}

/// What gives something back succeeds always: dockerd forgets it whatever it is told.
fn gives_back(path: &str) -> bool {
    ["Release", "Delete", "Leave", "Revoke"].iter().any(|word| path.contains(word))
}

#[test]
fn everything_recorded_from_dockerd_is_answered_in_time_and_in_its_form() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let _names = Names::serve(overlay.lab.host("h1").unwrap().path("/run/docker.sock"));
    let mut docker = Docker::new(&overlay.lab, "h1");
    docker.start_plugin();
    let socket = docker.plugin_socket();
    let scenarios: Vec<Scenario> = serde_json::from_str(include_str!("transcripts.json")).unwrap();
    // Addresses rest after use, so each scenario goes on to other parts of the prefix.
    let (mut played, mut succeeded, mut parts) = (0, 0, [0; 2]);
    for Scenario { scenario, about, calls } in &scenarios {
        let began = Instant::now();
        let mut replay = Replay { next: parts, ..Replay::default() };
        for (number, recorded) in calls.iter().enumerate() {
            let Recorded { path, body, reply, refused } = recorded;
            // What the recorded plugin refused, dockerd did not have afterwards.
            if *refused && !gives_back(path) {
                continue;
            }
            let mut wanted = Recorded { path: path.clone(), body: body.clone(), reply: reply.clone(), refused: false };
            if without_made_up(&mut wanted.body) {
                let mut aside =
                    Replay { pools: replay.pools.clone(), addresses: replay.addresses.clone(), ..Replay::default() };
                aside.next = [100; 2];
                let original = Recorded { path: path.clone(), body: body.clone(), reply: Value::Null, refused: false };
                if let Some((_, answer)) = aside.play(&socket, &original) {
                    let said = answer["Err"].as_str().unwrap_or_else(|| panic!("{scenario} {number}: {answer}"));
                    assert!(said.contains(".key"), "{said}");
                }
            }
            let Some((sent, answer)) = replay.play(&socket, &wanted) else { continue };
            played += 1;
            let what = format!("{scenario} ({about}), call {number} {path}\n{sent}\n{answer}");
            let failed = answer.get("Err").is_some();
            assert!(!failed || (!gives_back(path) && scenario == "errors"), "{what}");
            if failed {
                continue;
            }
            succeeded += 1;
            match path.as_str() {
                "/IpamDriver.RequestAddress" => {
                    let given = answer["Address"].as_str().and_then(alone).unwrap_or_else(|| panic!("{what}"));
                    if let Some(asked) = sent["Address"].as_str().and_then(alone) {
                        assert_eq!(given, asked, "{what}");
                    }
                }
                "/NetworkDriver.CreateEndpoint" => {
                    let interface = &answer["Interface"];
                    // Nothing that dockerd gave comes back.
                    assert!(interface.get("Address").is_none() && interface.get("AddressIPv6").is_none(), "{what}");
                    assert_eq!(interface.get("MacAddress").is_some(), sent["Interface"]["MacAddress"] == "", "{what}");
                }
                "/NetworkDriver.Join" => {
                    let source = answer["InterfaceName"]["SrcName"].as_str().unwrap_or_default();
                    assert!(source.len() > 2 && source.len() < 16 && answer["Gateway"].as_str() != Some(""), "{what}");
                }
                _ => {}
            }
        }
        replay.end(&socket);
        parts = replay.next;
        println!("{scenario}: {} calls in {:?}", calls.len(), began.elapsed());
    }
    println!("{played} calls, {succeeded} answered well");
    assert!(played > 600 && succeeded * 100 > played * 95, "{played} {succeeded}");
    nothing_left(&overlay, "h1");
}
