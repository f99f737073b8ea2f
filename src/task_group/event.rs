//! Events of an event stream, as text.

/// An event as `text/event-stream` has it: one `data:` field for each line of `data`.
///
/// A client reads it as it was, but for its ends of lines: `\n`, `\r\n` and a lone `\r` all end one there, and
/// come back as `\n`. With an empty `name` it has none, and is a `message` to its client; the end of a line in
/// a name counts as a space. Other fields go in front: `format!("id: {id}\n{}", event("", text))`.
///
/// ```
/// use bodyguard::task_group::event;
///
/// assert_eq!(event("", "rain"), "data: rain\n\n");
/// assert_eq!(event("news", "two\r\nlines"), "event: news\ndata: two\ndata: lines\n\n");
/// ```
///
/// Source: WHATWG HTML, 9.2.5 and 9.2.6.
pub fn event(name: &str, data: &str) -> String {
    let mut event = String::with_capacity(name.len() + data.len() + 24);
    if !name.is_empty() {
        event.push_str("event: ");
        event.extend(name.chars().map(|char| match char {
            '\r' | '\n' => ' ',
            other => other,
        }));
        event.push('\n');
    }
    for line in data.split("\r\n").flat_map(|part| part.split(['\r', '\n'])) {
        event.push_str("data: ");
        event.push_str(line);
        event.push('\n');
    }
    event.push('\n');
    event
}

#[cfg(test)]
mod tests {
    use super::event;

    /// What a client makes of a stream: names and data of its events.
    fn read(stream: &str) -> Vec<(String, String)> {
        let stream = stream.replace("\r\n", "\n").replace('\r', "\n");
        let (mut events, mut name, mut data) = (Vec::new(), String::new(), String::new());
        for line in stream.split('\n') {
            match line.split_once(':') {
                _ if line.is_empty() => {
                    // Without data there is no event.
                    if let Some(whole) = data.strip_suffix('\n') {
                        events.push((std::mem::take(&mut name), whole.to_owned()));
                    }
                    data.clear();
                }
                Some(("event", value)) => name = value.strip_prefix(' ').unwrap_or(value).into(),
                Some(("data", value)) => {
                    data.push_str(value.strip_prefix(' ').unwrap_or(value));
                    data.push('\n');
                }
                _ => panic!("{line}"),
            }
        }
        events
    }

    #[test]
    fn any_text_is_one_event() {
        for (name, data) in [
            ("news", "rain"),
            ("", "rain"),
            ("", ""),
            ("", " : led by a space"),
            ("", "\n"),
            ("", "ends in one\n"),
            ("news", "a\n\nevent: fake\nb\nc"),
            ("news", "a\r\n\r\nevent: fake\r\nb\r\nc"),
            ("news", "a\r\revent: fake\rb\n\rc\r"),
        ] {
            let lines = data.replace("\r\n", "\n").replace('\r', "\n");
            assert_eq!(read(&event(name, data)), [(name.to_owned(), lines)]);
        }
    }

    #[test]
    fn a_name_is_one_line() {
        let expected = ("a  data: fake".to_owned(), "b".to_owned());
        assert_eq!(read(&event("a\r\ndata: fake", "b")), [expected]);
    }

    #[test]
    fn the_text_is_as_short_as_can_be() {
        assert_eq!(event("news", "a\nb"), "event: news\ndata: a\ndata: b\n\n");
        assert_eq!(event("", ""), "data: \n\n");
    }
}
