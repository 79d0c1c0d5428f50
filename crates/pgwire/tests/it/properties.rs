//! The functions of the fuzz targets, over what is likely to go deep.

use neon_pgwire::fuzzing;
use proptest::prelude::*;

use crate::hostile_servers::message;

/// Messages with plausible tags and bodies, cut off and damaged now and then.
fn messages(tags: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(b"SERROR\0C58P01\0Mgone\0\0".to_vec()),
        Just(vec![0, 0, 0]),
        Just(vec![0, 1, 0, 0, 0, 3, b'0', b'/', b'1']),
        Just(vec![0, 2, 0, 0, 0, 3, b'0', b'/', b'1', 0, 0, 0, 1, b'1']),
        Just(vec![
            0, 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255
        ]),
        Just(b"SELECT\0".to_vec()),
        Just(b"nbase.tar\0\0".to_vec()),
        Just(b"m".to_vec()),
        Just(b"ddata".to_vec()),
        Just(b"IDENTIFY_SYSTEM\0".to_vec()),
        Just(b"BASE_BACKUP (MANIFEST 'yes', WAL)\0".to_vec()),
        Just(b"START_REPLICATION 0/1000000 TIMELINE 1\0".to_vec()),
        Just([b"r".as_slice(), &[1; 33]].concat()),
        Just([b"w".as_slice(), &[0, 0, 0, 0, 1, 0, 0, 0], &[0; 16], b"wal"].concat()),
    ];
    let one = (proptest::sample::select(tags), body).prop_map(|(tag, body)| message(tag, &body));
    (
        proptest::collection::vec(one, 0..14),
        any::<[u8; 2]>(),
        0_usize..2000,
        any::<Option<(usize, u8)>>(),
    )
        .prop_map(|(messages, choice, cut, damage)| {
            let mut bytes = choice.to_vec();
            messages
                .iter()
                .for_each(|message| bytes.extend_from_slice(message));
            if cut < 200 {
                bytes.truncate(bytes.len().saturating_sub(cut));
            }
            if let Some((at, value)) = damage {
                let at = at % bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn clients_survive_what_servers_say(said in messages(b"RSKZTDCEHWGdcNvI")) {
        fuzzing::client(&said);
    }

    #[test]
    fn servers_survive_what_clients_say(said in messages(b"QpdcfXPHS")) {
        fuzzing::server(&said);
    }

    #[test]
    fn connection_strings_survive(
        text in r"(postgres(ql)?://)?([a-z]{1,8}(=|:|@|/|\?|&|,|'|\\| |%4[0-9]|\[|\])?){0,12}",
        other in any::<String>(),
        files in r"(\[?[a*](\]|:|=|\\|#|\n){1,3}){0,12}",
    ) {
        fuzzing::conninfo(&text);
        fuzzing::conninfo(&other);
        fuzzing::conninfo(&files);
    }

    #[test]
    fn commands_survive(text in any::<String>(), words in r"(BASE_BACKUP|START_REPLICATION|SLOT|TIMELINE|LABEL|WAL|[ (),;'0/]|[0-9]){0,14}") {
        fuzzing::command(&text);
        fuzzing::command(&words);
    }

    #[test]
    fn archives_survive(bytes in proptest::collection::vec(any::<u8>(), 0..3000), piece in 1_usize..2000) {
        fuzzing::tar(&bytes, piece);
    }

    #[test]
    fn certificates_survive(damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..6), cut in any::<usize>()) {
        let mut der = certificate();
        for (at, value) in damage {
            let at = at % der.len();
            der[at] = value;
        }
        fuzzing::certificate(&der);
        der.truncate(cut % der.len());
        fuzzing::certificate(&der);
    }
}

fn certificate() -> Vec<u8> {
    static DER: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.example.org".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    });
    DER.clone()
}

#[test]
fn archives_with_members_are_cut_and_not_changed() {
    let mut header = vec![0_u8; 512];
    header[124..136].copy_from_slice(b"00000001750 ");
    let mut archive = header;
    archive.resize(512 + 1024, 5);
    for piece in [1, 7, 512, 4000] {
        fuzzing::tar(&archive, piece);
    }
}
