//! Manifests of real base backups, and `pg_verifybackup` over manifests of ours.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use neon_pg_layout::{
    ChecksumAlgorithm, ControlFile, FileHasher, Manifest, ManifestFile, ManifestWriter, PgMajor,
    gmt,
};
use neon_testkit::Cluster;

use super::{for_every_major, for_majors_with_tools, furnished, own_tool, run};

for_every_major!(manifests_of_base_backups_are_rewritten_byte_for_byte);

for_majors_with_tools!(pg_verifybackup_accepts_our_manifests_and_rejects_what_they_do_not_say);

/// Takes a base backup with the major's own client or, for bare servers, the newest there is.
fn base_backup(
    cluster: &Cluster,
    name: &str,
    algorithm: ChecksumAlgorithm,
    args: &[&str],
) -> PathBuf {
    let target = cluster.scratch_dir().join(name);
    // Not on the same machine twice: the tablespace needs a place of its own.
    let tablespace = cluster.scratch_dir().join("tablespaces/fast disk");
    let moved = cluster.scratch_dir().join(format!("{name}-tablespace"));
    cluster.run_tool(
        "pg_basebackup",
        [
            &["-c", "fast", "--no-sync", "-D", target.to_str().unwrap()][..],
            &[&format!("--manifest-checksums={algorithm}")],
            &[&format!(
                "--tablespace-mapping={}={}",
                tablespace.display(),
                moved.display()
            )],
            args,
        ]
        .concat(),
    );
    target
}

fn sum(path: &Path, algorithm: ChecksumAlgorithm) -> Option<neon_pg_layout::FileChecksum> {
    let mut hasher = FileHasher::new(algorithm);
    for piece in std::fs::read(path).unwrap().chunks(10_000) {
        hasher.update(piece);
    }
    hasher.finish()
}

fn manifests_of_base_backups_are_rewritten_byte_for_byte(major: PgMajor) {
    let cluster = furnished(Cluster::builder(major));
    // Two algorithms per major: over the majors, each is used twice.
    let first = PgMajor::ALL.iter().position(|one| *one == major).unwrap();
    for step in 0..2 {
        let algorithm = ChecksumAlgorithm::ALL[(first + step) % 6];
        let target = base_backup(&cluster, algorithm.name(), algorithm, &["-X", "none"]);
        let bytes = std::fs::read(target.join("backup_manifest")).unwrap();
        let manifest = Manifest::parse(&bytes).unwrap();
        assert_eq!(manifest.to_bytes(), bytes, "{algorithm}");
        assert_eq!(manifest.version(), major.layout().manifest_version);
        let control = std::fs::read(target.join("global/pg_control")).unwrap();
        let control = ControlFile::decode(&control).unwrap();
        let named = (manifest.version() == 2).then_some(control.system_identifier);
        assert_eq!(manifest.system_identifier, named);
        assert!(manifest.files.len() > 500 && manifest.wal_ranges.len() == 1);
        for file in &manifest.files {
            let path = target.join(std::str::from_utf8(&file.path).unwrap());
            assert_eq!(path.metadata().unwrap().len(), file.size);
            assert_eq!(sum(&path, algorithm), file.checksum, "{}", path.display());
        }
    }
    let target = base_backup(
        &cluster,
        "encoded",
        ChecksumAlgorithm::Crc32c,
        &["-X", "none", "--manifest-force-encode"],
    );
    let bytes = std::fs::read(target.join("backup_manifest")).unwrap();
    let manifest = Manifest::parse(&bytes).unwrap();
    let mut writer = ManifestWriter::new(manifest.system_identifier).encode_paths();
    let mut again = Vec::new();
    for file in &manifest.files {
        writer.file(file);
        again.extend(writer.take());
    }
    again.extend(writer.finish(&manifest.wal_ranges));
    assert_eq!(again, bytes);
}

/// A manifest of what lies in a directory, made from nothing but its files.
fn manifest_of(target: &Path, theirs: &Manifest, algorithm: ChecksumAlgorithm) -> Manifest {
    let files = super::files_below(target);
    let listed = files.iter().filter(|path| {
        let path = path.to_str().unwrap();
        path != "backup_manifest" && !path.starts_with("pg_wal/")
    });
    let files = listed.map(|path| {
        let metadata = target.join(path).metadata().unwrap();
        ManifestFile {
            path: path.to_str().unwrap().as_bytes().to_vec(),
            size: metadata.len(),
            modified: Some(gmt(metadata.mtime())),
            checksum: sum(&target.join(path), algorithm),
        }
    });
    Manifest {
        system_identifier: theirs.system_identifier,
        files: files.collect(),
        wal_ranges: theirs.wal_ranges.clone(),
    }
}

/// A second judge of version 2: it reads the manifests of its inputs and carries their checksums over.
#[test]
fn pg_combinebackup_of_18_accepts_our_manifests_and_rejects_damaged_ones() {
    let cluster = furnished(Cluster::builder(PgMajor::V18));
    let target = base_backup(
        &cluster,
        "backup",
        ChecksumAlgorithm::Sha256,
        &["-X", "fetch"],
    );
    let path = target.join("backup_manifest");
    let theirs = Manifest::parse(&std::fs::read(&path).unwrap()).unwrap();
    let tablespace = cluster.scratch_dir().join("backup-tablespace");
    let mut runs = 0;
    let mut combine = |manifest: &[u8]| {
        std::fs::write(&path, manifest).unwrap();
        runs += 1;
        let output = cluster.scratch_dir().join(format!("combined{runs}"));
        let moved = cluster.scratch_dir().join(format!("moved{runs}"));
        let mut command = own_tool(PgMajor::V18, "pg_combinebackup");
        command.arg("--no-sync").arg("-o").arg(&output).arg(&target);
        command.arg(format!("-T{}={}", tablespace.display(), moved.display()));
        let (success, printed) = run(&mut command);
        (success, printed, output)
    };
    for algorithm in ChecksumAlgorithm::ALL {
        let ours = manifest_of(&target, &theirs, algorithm);
        let (success, printed, output) = combine(&ours.to_bytes());
        assert!(success, "{algorithm}: {printed}");
        // What it took over from our manifest, or computed itself, is what we compute.
        let made = std::fs::read(output.join("backup_manifest")).unwrap();
        let made = Manifest::parse(&made).unwrap();
        assert_eq!(made.system_identifier, ours.system_identifier);
        for file in &made.files {
            let path = output.join(std::str::from_utf8(&file.path).unwrap());
            let algorithm = file
                .checksum
                .as_ref()
                .map_or(ChecksumAlgorithm::None, |sum| sum.algorithm());
            assert_eq!(sum(&path, algorithm), file.checksum);
        }
        assert!(made.files.len() >= ours.files.len());
    }
    let ours = manifest_of(&target, &theirs, ChecksumAlgorithm::Crc32c);
    let mut other = ours.clone();
    other.system_identifier = Some("5".parse().unwrap());
    let (success, printed, _) = combine(&other.to_bytes());
    assert!(
        !success && printed.contains("system identifier"),
        "{printed}"
    );
    let mut bytes = ours.to_bytes();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    assert!(!combine(&bytes).0);
}

fn pg_verifybackup_accepts_our_manifests_and_rejects_what_they_do_not_say(major: PgMajor) {
    let cluster = furnished(Cluster::builder(major));
    let target = base_backup(
        &cluster,
        "backup",
        ChecksumAlgorithm::Sha256,
        &["-X", "fetch"],
    );
    let path = target.join("backup_manifest");
    let theirs = Manifest::parse(&std::fs::read(&path).unwrap()).unwrap();
    let (starts, _) = run(own_tool(major, "pg_verifybackup").arg("--version"));
    assert!(
        starts,
        "pg_verifybackup of {major} is broken; scripts/postgres repairs it"
    );
    let verify = || run(own_tool(major, "pg_verifybackup").arg(&target));
    for algorithm in ChecksumAlgorithm::ALL {
        let ours = manifest_of(&target, &theirs, algorithm);
        std::fs::write(&path, ours.to_bytes()).unwrap();
        let (success, printed) = verify();
        assert!(success, "{algorithm}: {printed}");
    }
    let ours = manifest_of(&target, &theirs, ChecksumAlgorithm::Crc32c);
    let mut writer = ManifestWriter::new(ours.system_identifier).encode_paths();
    for file in &ours.files {
        writer.file(file);
    }
    std::fs::write(&path, writer.finish(&ours.wal_ranges)).unwrap();
    let (success, printed) = verify();
    assert!(success, "encoded paths: {printed}");

    let mut short = ours.clone();
    short.files.pop();
    std::fs::write(&path, short.to_bytes()).unwrap();
    let (success, printed) = verify();
    assert!(
        !success && printed.contains("not in the manifest"),
        "{printed}"
    );
    let mut bytes = ours.to_bytes();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(!verify().0);
    std::fs::write(&path, ours.to_bytes()).unwrap();
    let damaged = target.join("PG_VERSION");
    std::fs::write(damaged, "99\n").unwrap();
    let (success, printed) = verify();
    assert!(!success && printed.contains("PG_VERSION"), "{printed}");
}
