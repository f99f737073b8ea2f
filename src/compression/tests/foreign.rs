//! Decoders that are not ours: Python's zlib, and the system's gzip.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// Longer than any wait that is not a failure.
const DEADLINE: Duration = Duration::from_secs(60);

/// Decodes each as one member with nothing behind it; its trailer is that of the text.
const SCRIPT: &str = "
import struct, sys, zlib
count = 0
def take():
    size = sys.stdin.buffer.read(4)
    return sys.stdin.buffer.read(struct.unpack('<I', size)[0]) if size else None
while (wire := take()) is not None:
    text = take()
    decoder = zlib.decompressobj(31)
    assert decoder.decompress(wire) == text, f'{count}: another text'
    assert decoder.eof and not decoder.unused_data, f'{count}: not one member'
    trailer = struct.unpack('<II', wire[-8:])
    assert trailer == (zlib.crc32(text), len(text) % 2**32), f'{count}: {trailer}'
    count += 1
print(count)
";

/// Asserts that each wire is one gzip member of its text, to both decoders.
pub(crate) fn decode(wires: Vec<(Vec<u8>, Vec<u8>)>) {
    let mut input = Vec::new();
    for (wire, text) in &wires {
        for bytes in [wire, text] {
            let length = u32::try_from(bytes.len()).expect("less than 4 GiB");
            input.extend_from_slice(&length.to_le_bytes());
            input.extend_from_slice(bytes);
        }
    }
    let output = pipe(Command::new("python3").args(["-c", SCRIPT]), input);
    assert_eq!(output.trim_ascii(), wires.len().to_string().as_bytes());

    let (wires, texts): (Vec<_>, Vec<_>) = wires.into_iter().unzip();
    // gzip reads members one after the other, and fails on anything that is none.
    assert!(pipe(Command::new("gzip").arg("-dc"), wires.concat()) == texts.concat());
}

fn pipe(command: &mut Command, input: Vec<u8>) -> Vec<u8> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a decoder");
    let mut stdin = child.stdin.take().expect("piped");
    let mut stdout = child.stdout.take().expect("piped");
    let writer = thread::spawn(move || stdin.write_all(&input));
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut output = Vec::new();
        let read = stdout.read_to_end(&mut output);
        let _ = tell.send(read.map(|_| output));
    });
    let output = told.recv_timeout(DEADLINE);
    if output.is_err() {
        let _ = child.kill();
    }
    assert!(child.wait().expect("a status").success());
    writer.join().expect("no panic").expect("all taken");
    output.expect("in time").expect("output")
}
