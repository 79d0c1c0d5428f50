//! From texts and variables to storages.

use std::sync::Arc;

use async_trait::async_trait;
#[cfg(feature = "s3")]
use neon_storage::Variables;
use neon_storage::{
    Context, ErrorKind, Factory, Key, Locator, Memory, Registry, Result, Storage, StorageExt,
};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_file_locators_open_the_same_place() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::default();
    let path = dir.path().display();
    let open = async |text: &str| {
        registry
            .open(&Locator::parse(text).unwrap(), &Context::default())
            .await
            .unwrap()
    };
    open(&path.to_string())
        .await
        .create(&key("k"), "x")
        .await
        .unwrap();
    assert_eq!(
        open(&format!("file://{path}"))
            .await
            .read(&key("k"))
            .await
            .unwrap(),
        "x"
    );
    let mut context = Context::default();
    context.variables = [("WALG_FILE_PREFIX", path.to_string())]
        .into_iter()
        .collect();
    let located = context.variables.locate().unwrap().unwrap();
    let storage = registry.open(&located, &context).await.unwrap();
    assert_eq!(storage.read(&key("k")).await.unwrap(), "x");
}

/// A third party's scheme: storages by name.
#[derive(Debug)]
struct Named(Arc<dyn Storage>);

#[async_trait]
impl Factory for Named {
    async fn open(&self, locator: &Locator, _: &Context) -> Result<Arc<dyn Storage>> {
        match locator.host() {
            Some("mine") => Ok(Arc::clone(&self.0)),
            _ => Err(locator.invalid("no such name")),
        }
    }
}

#[tokio::test]
async fn third_parties_register_schemes_in_registries_of_their_own() {
    let memory: Arc<dyn Storage> = Arc::new(Memory::new());
    memory.create(&key("k"), "x").await.unwrap();
    let mut registry = Registry::default();
    registry.register("named", Arc::new(Named(memory)));
    let context = Context::default();
    let mine = Locator::parse("named://mine").unwrap();
    let storage = registry.open(&mine, &context).await.unwrap();
    assert_eq!(storage.read(&key("k")).await.unwrap(), "x");
    let other = Locator::parse("named://other").unwrap();
    let error = registry.open(&other, &context).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    // Another registry knows nothing of it.
    let error = Registry::default().open(&mine, &context).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let empty = Registry::empty()
        .open(&Locator::parse("/x").unwrap(), &context)
        .await
        .unwrap_err();
    assert_eq!(empty.kind(), ErrorKind::Unsupported);
}

#[cfg(feature = "s3")]
#[tokio::test(flavor = "multi_thread")]
async fn s3_is_opened_by_locator_and_by_variables() {
    use neon_testkit::s3::{S3Server, S3ServerOptions};
    let server = S3Server::start(S3ServerOptions::default());
    let registry = Registry::default();
    let mut context = Context::default();
    let options = server.options();
    context.variables = [
        ("AWS_ACCESS_KEY_ID", options.access_key.as_str()),
        ("AWS_SECRET_ACCESS_KEY", options.secret_key.as_str()),
    ]
    .into_iter()
    .collect();
    let text = format!(
        "s3://bucket/a/prefix?endpoint={}&region=eu-x&list-page=5",
        server.endpoint()
    );
    let locator = Locator::parse(&text).unwrap();
    let storage = registry.open(&locator, &context).await.unwrap();
    storage.create(&key("k"), "x").await.unwrap();
    assert_eq!(server.objects("bucket")[0].key, "a/prefix/k");
    assert!(
        storage
            .location()
            .starts_with("s3://bucket/a/prefix?endpoint=http://127.0.0.1:")
    );
    context.variables = [
        ("WALG_S3_PREFIX", "s3://bucket/a/prefix"),
        ("AWS_ENDPOINT", &server.endpoint()),
        ("AWS_S3_FORCE_PATH_STYLE", "true"),
        ("AWS_ACCESS_KEY", options.access_key.as_str()),
        ("AWS_SECRET_KEY", options.secret_key.as_str()),
        ("WALG_S3_STORAGE_CLASS", "STANDARD_IA"),
        ("S3_SSE", "AES256"),
    ]
    .into_iter()
    .collect();
    let located = context.variables.locate().unwrap().unwrap();
    let storage = registry.open(&located, &context).await.unwrap();
    assert_eq!(storage.read(&key("k")).await.unwrap(), "x");
    storage.create(&key("l"), "y").await.unwrap();
    let stored = &server.objects("bucket")[1];
    assert_eq!(stored.storage_class.as_deref(), Some("STANDARD_IA"));
    assert_eq!(stored.encryption.as_deref(), Some("AES256"));
}

#[cfg(feature = "s3")]
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_silently_ignored() {
    let registry = Registry::default();
    let open = async |text: &str, pairs: &[(&str, &str)]| {
        let mut context = Context::default();
        context.variables = pairs.iter().copied().collect::<Variables>();
        registry
            .open(&Locator::parse(text).unwrap(), &context)
            .await
            .unwrap_err()
            .kind()
    };
    for text in [
        "s3://bucket/x?colour=red",
        "s3://bucket/x?part-size=large",
        "s3://bucket/x?path-style=perhaps",
        "s3://bucket/x?endpoint=host:1",
        "s3://bucket/x?sse=rot13",
        "s3://bucket/x?conditional=maybe",
        "s3://bucket/x?checksum=sum",
        "s3://bucket/x?sse=AES256&sse-kms-id=key-1",
        "s3://bucket/x?sse-kms-id=key-1&sse=AES256",
        "s3://user:secret@bucket/x",
        "s3://",
    ] {
        assert_eq!(open(text, &[]).await, ErrorKind::Invalid, "{text}");
    }
    assert_eq!(
        open("s3://b/x", &[("S3_RETENTION_MODE", "GOVERNANCE")]).await,
        ErrorKind::Unsupported
    );
    assert_eq!(
        open("s3://b/x", &[("WALG_S3_MAX_PART_SIZE", "big")]).await,
        ErrorKind::Invalid
    );
    assert_eq!(
        open("s3://b/x", &[("S3_SSE", "rot13")]).await,
        ErrorKind::Invalid
    );
    for half in [
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"),
    ] {
        assert_eq!(
            open("s3://b/x", &[half]).await,
            ErrorKind::Invalid,
            "{half:?}"
        );
    }
}

#[cfg(feature = "s3")]
#[test]
fn options_mean_the_same_in_every_order() {
    use neon_storage::{Encryption, S3Config};
    let config = |text: &str| {
        let locator = Locator::parse(text).unwrap();
        S3Config::from_locator(&locator, &Context::default()).unwrap()
    };
    let key = Some(Encryption::Kms(Some("key-1".to_owned())));
    for text in [
        "s3://bucket/x?sse=aws:kms&sse-kms-id=key-1",
        "s3://bucket/x?sse-kms-id=key-1&sse=aws:kms",
        "s3://bucket/x?sse-kms-id=key-1",
    ] {
        assert_eq!(config(text).encryption, key, "{text}");
    }
    let default = config("s3://bucket/x?sse=aws:kms").encryption;
    assert_eq!(default, Some(Encryption::Kms(None)));
    let sizes = |text: &str| {
        let config = config(text);
        (config.part_size, config.max_part_size)
    };
    let expected = (100 << 20, 200 << 20);
    for text in [
        "s3://bucket/x?part-size=104857600&max-part-size=209715200",
        "s3://bucket/x?max-part-size=209715200&part-size=104857600",
    ] {
        assert_eq!(sizes(text), expected, "{text}");
    }
}

#[cfg(feature = "ssh")]
#[tokio::test(flavor = "multi_thread")]
async fn ssh_locators_are_checked() {
    let registry = Registry::default();
    for text in [
        "ssh://user:secret@host/path",
        "ssh://host/path?port=22",
        "ssh://-oProxyCommand=evil/path",
        "ssh://-oProxyCommand=evil@host/path",
        "ssh:///path",
    ] {
        let opened = match Locator::parse(text) {
            Ok(locator) => registry.open(&locator, &Context::default()).await.map(drop),
            Err(error) => Err(error),
        };
        assert_eq!(opened.unwrap_err().kind(), ErrorKind::Invalid, "{text}");
    }
}
