//! Server-sent events.

/// An event with any text as its data: a line for each line, or a blank one would end the event.
pub(crate) fn event(name: &str, text: &str) -> String {
    let mut event = format!("event: {name}\n");
    // Clients take all three for the end of a line.
    for line in text.split("\r\n").flat_map(|line| line.split(['\r', '\n'])) {
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

    #[test]
    fn text_is_one_line_of_data_for_each_of_its_own() {
        assert_eq!(event("news", "rain"), "event: news\ndata: rain\n\n");
        assert_eq!(event("news", ""), "event: news\ndata: \n\n");
        let lines = "data: a\ndata: \ndata: event: fake\ndata: b\ndata: c\n";
        for text in [
            "a\n\nevent: fake\nb\nc",
            "a\r\n\r\nevent: fake\r\nb\r\nc",
            "a\r\revent: fake\rb\r\nc",
        ] {
            assert_eq!(event("news", text), format!("event: news\n{lines}\n"));
        }
    }
}
