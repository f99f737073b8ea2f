//! The airports as CSV text: read from the data set, written for the client.

use sqlx::Error;

pub(super) const AIRPORTS: &str = include_str!("../data/airports.csv");

/// A row of the export: code, name, city, state, country, latitude, longitude.
pub(super) type Airport = (String, String, String, String, String, f64, f64);

pub(super) const HEADER: &str = "iata,name,city,state,country,latitude,longitude\n";

/// The rows of the data set.
pub(super) fn airports() -> Result<Vec<Airport>, Error> {
    let parse = |line: &str| {
        let [iata, name, city, state, country, latitude, longitude]: [String; 7] =
            split_fields(line).try_into().ok()?;
        Some((
            iata,
            name,
            city,
            state,
            country,
            latitude.parse().ok()?,
            longitude.parse().ok()?,
        ))
    };
    let lines = AIRPORTS.lines().skip(1);
    lines
        .map(|line| {
            parse(line).ok_or_else(|| Error::Decode(format!("airports.csv: {line}").into()))
        })
        .collect()
}

/// Splits a CSV line (RFC 4180, without line breaks inside quotes).
fn split_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let field = fields.last_mut().expect("there is always one");
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    fields
}

/// Appends a row.
pub(super) fn push_row(csv: &mut String, airport: &Airport) {
    let (iata, name, city, state, country, latitude, longitude) = airport;
    for text in [iata, name, city, state, country] {
        push_field(csv, text);
        csv.push(',');
    }
    *csv += &format!("{latitude},{longitude}\n");
}

/// Appends a field, quoted if it has to be.
fn push_field(csv: &mut String, text: &str) {
    if text.contains(['"', ',', '\n', '\r']) {
        *csv += &format!("\"{}\"", text.replace('"', "\"\""));
    } else {
        *csv += text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_survives_being_written_and_read() {
        let mut csv = String::new();
        push_field(&mut csv, r#"Dr. "C.P." Savage, Sr."#);
        csv.push(',');
        push_field(&mut csv, "plain");
        assert_eq!(csv, r#""Dr. ""C.P."" Savage, Sr.",plain"#);
        assert_eq!(split_fields(&csv), [r#"Dr. "C.P." Savage, Sr."#, "plain"]);
    }
}
