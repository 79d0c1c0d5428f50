//! The words of a JSON text, one byte at a time and in bounded memory.

/// No string or number of a manifest is longer: a path has at most 4096 bytes, twice that in digits.
const LONGEST: usize = 1 << 14;

/// A word of JSON. Literals (`true`, `null`) have no place in a manifest and are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// One of `{}[]:,`.
    Mark(u8),
    /// A string without its quotes, escapes resolved.
    String(&'a str),
    /// A number as it stands.
    Number(&'a str),
}

/// What a byte brought.
pub(super) enum Step<'a> {
    /// Nothing yet.
    More,
    /// A word that ends with this byte.
    Token(Token<'a>),
    /// A word that ended before this byte, which must be taken again.
    Before(Token<'a>),
}

#[derive(Debug)]
pub(super) struct Tokenizer {
    state: State,
    text: Vec<u8>,
    /// The first half of a character outside the basic plane.
    high: Option<u16>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Between,
    String,
    Escape,
    Digits { read: u8, unit: u16 },
    Number,
}

type Refused = &'static str;

impl Tokenizer {
    pub(super) const fn new() -> Self {
        Self {
            state: State::Between,
            text: Vec::new(),
            high: None,
        }
    }

    pub(super) fn step(&mut self, byte: u8) -> Result<Step<'_>, Refused> {
        match self.state {
            State::Between => self.between(byte),
            State::String => self.in_string(byte),
            State::Escape => self.escape(byte),
            State::Digits { read, unit } => self.digit(byte, read, unit),
            State::Number => {
                if !is_number(byte) {
                    self.state = State::Between;
                    let text = std::str::from_utf8(&self.text).map_err(|_| "a number")?;
                    return Ok(Step::Before(Token::Number(text)));
                }
                self.put(byte)
            }
        }
    }

    fn put(&mut self, byte: u8) -> Result<Step<'_>, Refused> {
        if self.text.len() >= LONGEST {
            return Err("a word longer than 16 KiB");
        }
        self.text.push(byte);
        Ok(Step::More)
    }

    fn between(&mut self, byte: u8) -> Result<Step<'_>, Refused> {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => Ok(Step::More),
            b'{' | b'}' | b'[' | b']' | b':' | b',' => Ok(Step::Token(Token::Mark(byte))),
            b'"' => {
                self.text.clear();
                self.state = State::String;
                Ok(Step::More)
            }
            b'-' | b'0'..=b'9' => {
                self.text.clear();
                self.state = State::Number;
                self.put(byte)
            }
            _ => Err("not JSON"),
        }
    }

    fn in_string(&mut self, byte: u8) -> Result<Step<'_>, Refused> {
        if self.high.is_some() && byte != b'\\' {
            return Err("half a character in a string");
        }
        match byte {
            b'"' => {
                self.state = State::Between;
                let text = std::str::from_utf8(&self.text).map_err(|_| "a string is not UTF-8")?;
                Ok(Step::Token(Token::String(text)))
            }
            b'\\' => {
                self.state = State::Escape;
                Ok(Step::More)
            }
            0..0x20 => Err("a control character in a string"),
            _ => self.put(byte),
        }
    }

    fn escape(&mut self, byte: u8) -> Result<Step<'_>, Refused> {
        let meant = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.state = State::Digits { read: 0, unit: 0 };
                return Ok(Step::More);
            }
            _ => return Err("an unknown escape in a string"),
        };
        if self.high.is_some() {
            return Err("half a character in a string");
        }
        self.state = State::String;
        self.put(meant)
    }

    fn digit(&mut self, byte: u8, read: u8, unit: u16) -> Result<Step<'_>, Refused> {
        let digit = char::from(byte)
            .to_digit(16)
            .and_then(|digit| u16::try_from(digit).ok());
        let unit = unit << 4 | digit.ok_or("an unknown escape in a string")?;
        if read < 3 {
            self.state = State::Digits {
                read: read + 1,
                unit,
            };
            return Ok(Step::More);
        }
        self.state = State::String;
        if self.high.is_none() && (0xD800..0xDC00).contains(&unit) {
            self.high = Some(unit);
            return Ok(Step::More);
        }
        let units = self.high.take().into_iter().chain([unit]);
        let mut decoded = char::decode_utf16(units);
        let Some(Ok(character)) = decoded.next() else {
            return Err("half a character in a string");
        };
        for byte in character.encode_utf8(&mut [0; 4]).bytes() {
            self.put(byte)?;
        }
        Ok(Step::More)
    }
}

const fn is_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}
