//! `doctor`

use neon_pg::{DoctorOptions, DoctorReport, Severity};
use serde_json::{Value, json};

use super::Scene;
use crate::args::Doctor;
use crate::asking::confirm;
use crate::failure::Outcome;
use crate::render::Answer;

/// What a repair settles.
fn plan(report: &DoctorReport) -> String {
    let mut plan = String::new();
    for finding in report.fixable() {
        plan.push_str(&format!(
            "will be settled: {}: {} [{}]\n",
            finding.subject, finding.message, finding.code
        ));
    }
    plan
}

pub(crate) async fn run(wanted: &Doctor, scene: &Scene<'_>) -> Outcome<Answer> {
    let mut options = DoctorOptions::default();
    options.offline = wanted.offline;
    options.path = scene
        .surroundings
        .get("PATH")
        .unwrap_or_default()
        .to_owned();
    options.program = std::env::current_exe().ok();
    let mut report = scene.neon.doctor(&options).await?;
    let mut text = String::new();
    let plan = plan(&report);
    if wanted.fix && !plan.is_empty() {
        if wanted.dry_run {
            text.push_str(&plan);
        } else {
            confirm(scene, "doctor --fix", &plan, wanted.yes).await?;
            options.fix = true;
            options.agreed = Some(report.fixable().cloned().collect());
            report = scene.neon.doctor(&options).await?;
        }
    }
    for fixed in &report.fixed {
        text.push_str(&format!("fixed: {fixed}\n"));
    }
    for finding in &report.findings {
        let word = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            _ => "info",
        };
        text.push_str(&format!(
            "{word}: {}: {} [{}]\n",
            finding.subject, finding.message, finding.code
        ));
        if let Some(hint) = &finding.hint {
            text.push_str(&format!("  hint: {hint}\n"));
        }
    }
    let count = |severity| {
        let findings = report.findings.iter();
        findings.filter(|one| one.severity == severity).count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    text.push_str(&match (errors, warnings) {
        (0, 0) => "All is well.".to_owned(),
        (0, warnings) => format!("Nothing is broken; {warnings} to look at."),
        (errors, warnings) => format!("{errors} broken, {warnings} to look at."),
    });
    let findings = report.findings.iter().map(|one| json!(one)).collect();
    let data = json!({
        "clean": errors + warnings == 0,
        "findings": Value::Array(findings),
        "fixed": report.fixed,
    });
    let mut answer = Answer::of(text, data);
    answer.rows = Some("findings");
    answer.exit = u8::from(errors > 0);
    Ok(answer)
}
