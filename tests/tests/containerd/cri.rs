//! A small client of CRI: gRPC by `curl`, messages written and read field by field.
//!
//! A gRPC call is an HTTP/2 POST whose body is a byte 0, a length of four bytes and the message; errors are trailers.

use overlay_netns_harness::engine::EngineHost;
use serde_json::Value;
use std::fs;

/// A protobuf message being written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, mut value: u64) -> Message {
        while value >= 0x80 {
            self.0.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap());
        self
    }

    /// A number.
    pub(crate) fn number(self, field: u64, value: u64) -> Message {
        self.varint(field << 3).varint(value)
    }

    /// Text.
    pub(crate) fn text(self, field: u64, value: &str) -> Message {
        self.bytes(field, value.as_bytes())
    }

    /// A message inside this one.
    pub(crate) fn message(self, field: u64, value: &Message) -> Message {
        self.bytes(field, &value.0)
    }

    fn bytes(self, field: u64, value: &[u8]) -> Message {
        let mut message = self.varint(field << 3 | 2).varint(value.len() as u64);
        message.0.extend_from_slice(value);
        message
    }
}

/// A protobuf value that was read: fields with their numbers.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<(u64, Vec<u8>)>);

impl Fields {
    fn parse(mut bytes: &[u8]) -> Fields {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = match key & 7 {
                0 => varint(&mut bytes).to_le_bytes().to_vec(),
                2 => {
                    let length = usize::try_from(varint(&mut bytes)).unwrap();
                    let (value, rest) = bytes.split_at(length);
                    bytes = rest;
                    value.to_vec()
                }
                other => panic!("a field of kind {other}"),
            };
            fields.push((key >> 3, value));
        }
        Fields(fields)
    }

    /// Whether this text is anywhere inside.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.0.iter().any(|(_, value)| String::from_utf8_lossy(value).contains(text))
    }

    /// All messages of a field.
    pub(crate) fn messages(&self, field: u64) -> Vec<Fields> {
        self.0.iter().filter(|(number, _)| *number == field).map(|(_, value)| Fields::parse(value)).collect()
    }

    /// A message; an absent one is empty.
    pub(crate) fn message(&self, field: u64) -> Fields {
        self.messages(field).pop().unwrap_or_default()
    }

    /// Text; absent is empty.
    pub(crate) fn text(&self, field: u64) -> String {
        let value = self.0.iter().rfind(|(number, _)| *number == field).map(|(_, value)| value.as_slice());
        String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
    }

    /// A number; absent is 0.
    pub(crate) fn number(&self, field: u64) -> u64 {
        let value = self.0.iter().rfind(|(number, _)| *number == field).map(|(_, value)| value.as_slice());
        value.map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap()))
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            break;
        }
    }
    value
}

/// One call of the runtime service of the containerd on a host: the answer, or what it says against it.
pub(crate) fn call(host: &EngineHost, method: &str, request: &Message) -> Result<Fields, String> {
    let (sent, received) = (host.directory().join("request"), host.directory().join("answer"));
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(request.0.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&request.0);
    fs::write(&sent, body).unwrap();
    let _ = fs::remove_file(&received);
    let (data, output) = (format!("@{}", sent.display()), received.display().to_string());
    let url = format!("http://localhost/runtime.v1.RuntimeService/{method}");
    let words = [
        "curl",
        "--silent",
        "--show-error",
        "--http2-prior-knowledge",
        "--unix-socket",
        super::engine::SOCKET,
        "--max-time",
        "60",
        "-H",
        "content-type: application/grpc",
        "-H",
        "te: trailers",
        "--data-binary",
        &data,
        "--output",
        &output,
        "--dump-header",
        "-",
        &url,
    ];
    let done = host.output(&words).unwrap();
    let head = String::from_utf8_lossy(&done.stdout).into_owned();
    let header =
        |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
    match header("grpc-status: ").as_deref() {
        Some("0") => {
            let answer = fs::read(&received).unwrap();
            Ok(Fields::parse(&answer[5..]))
        }
        Some(_) => Err(header("grpc-message: ").unwrap_or_default()),
        None => panic!("{method}: {head}{}", String::from_utf8_lossy(&done.stderr)),
    }
}

/// What a pod is to be, from the JSON that `crictl runp` reads.
pub(crate) fn pod(json: &Value, group: &str) -> Message {
    let word = |at: &Value| at.as_str().unwrap_or_default().to_owned();
    let metadata = &json["metadata"];
    let mut config = Message::default().message(
        1,
        &Message::default()
            .text(1, &word(&metadata["name"]))
            .text(2, &word(&metadata["uid"]))
            .text(3, &word(&metadata["namespace"])),
    );
    config = config.text(2, &word(&json["hostname"]));
    let mut dns = Message::default();
    for (field, key) in [(1, "servers"), (2, "searches"), (3, "options")] {
        for value in json["dns_config"][key].as_array().into_iter().flatten() {
            dns = dns.text(field, &word(value));
        }
    }
    if !json["dns_config"].is_null() {
        config = config.message(4, &dns);
    }
    for mapping in json["port_mappings"].as_array().into_iter().flatten() {
        let number = |key: &str| mapping[key].as_u64().unwrap_or(0);
        let mapping = Message::default()
            .number(1, number("protocol"))
            .number(2, number("container_port"))
            .number(3, number("host_port"))
            .text(4, &word(&mapping["host_ip"]));
        config = config.message(5, &mapping);
    }
    for (field, key) in [(6, "labels"), (7, "annotations")] {
        for (name, value) in json[key].as_object().into_iter().flatten() {
            config = config.message(field, &Message::default().text(1, name).text(2, &word(value)));
        }
    }
    // The namespaces of a pod; on the host's network where that is asked for.
    let network = u64::from(json["linux"]["security_context"]["namespace_options"]["network"] == 2);
    let namespaces = Message::default().number(1, network * 2).number(2, 1);
    let security = Message::default().message(1, &namespaces);
    config.message(8, &Message::default().text(1, &format!("/{group}/pods")).message(2, &security))
}
