//! Logs: to standard error, one line per change of state, with the priority journald reads from the front of the line.

use std::io::IsTerminal;
use std::sync::OnceLock;

use overlay_config::LogLevel;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Changes the level of the running log.
type SetLevel = Box<dyn Fn(EnvFilter) + Send + Sync>;
static SET_LEVEL: OnceLock<SetLevel> = OnceLock::new();

fn filter(level: LogLevel) -> EnvFilter {
    EnvFilter::try_from_env("OVERLAY_LOG")
        // boringtun reports what is ordinary to us, such as a peer that does not answer, as errors.
        .unwrap_or_else(|_| EnvFilter::new(format!("{},boringtun=off", level.name())))
}

/// Starts logging at this level; `OVERLAY_LOG` overrides it.
pub(crate) fn start(level: LogLevel) {
    let under_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt().with_env_filter(filter(level)).with_writer(std::io::stderr);
    // Both are set once: the daemon starts its log once.
    if under_journal {
        let builder = builder.event_format(Journal).with_filter_reloading();
        let handle = builder.reload_handle();
        let _ = SET_LEVEL.set(Box::new(move |filter| drop(handle.reload(filter))));
        let _ = builder.try_init();
    } else {
        let builder = builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).with_timer(Clock);
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        let _ = SET_LEVEL.set(Box::new(move |filter| drop(handle.reload(filter))));
        let _ = builder.try_init();
    }
}

/// Changes the level while running.
pub(crate) fn set_level(level: LogLevel) {
    if let Some(set) = SET_LEVEL.get() {
        set(filter(level));
    }
}

/// Wall-clock time, as in RFC 3339.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        write!(writer, "{}", overlay_control::Timestamp::from(std::time::SystemTime::now()))
    }
}

/// Lines for journald: `<PRIORITY>` in front (sd-daemon(3)), no time of our own.
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
