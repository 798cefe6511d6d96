//! Custom chat templates stay within their limits.
#![cfg(feature = "jinja")]

use gemma3_tokenizer::{JinjaError, JinjaLimits, JinjaTemplate};
use serde_json::json;

fn render(source: &str) -> Result<String, JinjaError> {
    render_within(source, JinjaLimits::default())
}

fn render_within(source: &str, limits: JinjaLimits) -> Result<String, JinjaError> {
    let messages = json!([{ "role": "user", "content": "  Hello " }]);
    JinjaTemplate::new(source, limits)?.render(&messages, true, &[("bos_token", "<bos>")])
}

#[test]
fn an_endless_loop_is_an_error() {
    let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}\
                  {% endfor %}{% endfor %}{% endfor %}";
    assert!(matches!(render(nested), Err(JinjaError::OutOfFuel { .. })));
    let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(matches!(render(recursive), Err(JinjaError::Render { .. } | JinjaError::OutOfFuel { .. })));
}

#[test]
fn a_huge_output_is_an_error() {
    let limits = JinjaLimits { output_bytes: 1000, ..JinjaLimits::default() };
    let loop_ = "{% for a in range(1000) %}some text {% endfor %}";
    assert!(matches!(render_within(loop_, limits), Err(JinjaError::OutputTooLong { limit: 1000 })));
    assert!(matches!(render_within("{{ 'x' * 1001 }}", limits), Err(JinjaError::OutputTooLong { .. })));
    assert_eq!(render_within("{{ 'x' * 1000 }}", limits).unwrap().len(), 1000);
}

#[test]
fn a_string_that_doubles_is_an_error_before_it_fills_the_memory() {
    let source = format!("{{% set x = 'xxxxxxxxxxxxxxxx' %}}{}", "{% set x = x ~ x %}".repeat(60));
    assert!(matches!(render(&source), Err(JinjaError::OutOfFuel { .. })));
    let method =
        format!("{{% set x = 'xxxxxxxx' %}}{}", "{% set x = x.replace('x', 'xxxxxxxx') %}".repeat(30));
    assert!(matches!(render(&method), Err(JinjaError::OutOfFuel { .. })));
}

#[test]
fn a_template_that_is_too_long_or_not_valid_is_an_error() {
    let limits = JinjaLimits { source_bytes: 10, ..JinjaLimits::default() };
    assert!(matches!(render_within("01234567890", limits), Err(JinjaError::SourceTooLong { found: 11, .. })));
    assert!(matches!(render("{% for %}"), Err(JinjaError::Syntax { .. })));
    assert!(matches!(render(&"{{ (".repeat(10_000)), Err(JinjaError::Syntax { .. })));
    assert!(matches!(render(&format!("{{{{ {}1 }}}}", "(".repeat(100_000))), Err(JinjaError::Syntax { .. })));
}

#[test]
fn no_file_can_be_read() {
    for source in ["{% include '/etc/passwd' %}", "{% extends '../secret' %}", "{% import 'x' as y %}"] {
        assert!(matches!(render(source), Err(JinjaError::Render { .. })), "{source}");
    }
}

#[test]
fn raise_exception_gives_its_message() {
    let Err(JinjaError::Raised { message }) = render("{{ raise_exception('no tools') }}") else {
        panic!("expected the exception");
    };
    assert_eq!(message, "no tools");
}

#[test]
fn an_attribute_of_something_undefined_is_an_error() {
    assert!(matches!(render("{{ tools.first }}"), Err(JinjaError::Render { .. })));
}

#[test]
fn blocks_are_trimmed_as_in_transformers() {
    assert_eq!(render("a\n  {% if true %}\nb\n  {% endif %}\nc\n").unwrap(), "a\nb\nc");
}

#[test]
fn texts_are_not_escaped_for_html() {
    assert_eq!(render("{{ '<' ~ bos_token }}").unwrap(), "<<bos>");
}

#[test]
fn the_methods_that_templates_use_behave_as_in_python() {
    for (source, expected) in [
        ("{{ messages[0].content.strip() }}", "Hello"),
        ("{{ ' \u{1c}a\u{1f} ' | trim }}", "a"),
        ("{{ '   '.lstrip() }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}", "|a | a"),
        ("{{ 'xxaxx'.strip('x') }}", "a"),
        ("{{ 'abc'.startswith('ab') and 'abc'.endswith('bc') }}", "True"),
        ("{{ 'a,b'.split(',') | join('+') }} {{ ' a  b '.split() | join('+') }}", "a+b a+b"),
        ("{{ 'AbC'.upper() }}{{ 'AbC'.lower() }}{{ 'aXa'.replace('X', 'y') }}", "ABCabcaya"),
        ("{{ messages[0].get('role') }}{{ messages[0].get('name', 'none') }}", "usernone"),
        ("{% for k, v in messages[0].items() %}{{ k }};{% endfor %}", "content;role;"),
        ("{% for k in messages[0].keys() %}{{ k }};{% endfor %}", "content;role;"),
        ("{{ messages[0].values() | length }}", "2"),
        ("{{ none is iterable }} {{ [] is iterable }} {{ none | trim }}", "False True None"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ messages | tojson }}", "[{\"content\": \"  Hello \", \"role\": \"user\"}]"),
    ] {
        assert_eq!(render(source).unwrap_or_else(|error| panic!("{source}: {error}")), expected, "{source}");
    }
}

#[test]
fn a_value_that_holds_itself_or_is_too_deep_is_an_error() {
    for source in [
        // Each ended the process: by writing, comparing or dropping the value.
        "{% set ns = namespace(x=0) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set ns = namespace(x=0) %}{% for i in range(99999) %}{% set ns.x = {'a': ns.x} %}{% endfor %}",
        "{% set ns = namespace() %}{% for i in range(99999) %}{% set ns.x = namespace(x=ns.x) %}{% endfor %}",
        "{% set ns = namespace() %}{% for i in range(99999) %}{% set ns.x | default([ns.x], true) %}{% endset %}{% endfor %}",
    ] {
        assert!(matches!(render(source), Err(JinjaError::Render { .. })), "{source}: {:?}", render(source));
    }
    let straight = format!("{{% set x = 0 %}}{}{{{{ x }}}}", "{% set x = [[[[[[[[x]]]]]]]] %}".repeat(5000));
    assert!(matches!(render(&straight), Err(JinjaError::Render { .. })));
    // As deep as the limits allow, without an assignment.
    let calls = format!(
        "{{% macro f(x) %}}{{{{ f({}x{}) }}}}{{{{ x }}}}{{% endmacro %}}{{{{ f(1) }}}}",
        "[".repeat(40),
        "]".repeat(40)
    );
    assert!(matches!(render(&calls), Err(JinjaError::Render { .. } | JinjaError::OutOfFuel { .. })));
    let leaf = format!(
        "{{% macro f(x, n) %}}{{% if n > 0 %}}{{{{ f({}x{}, n - 1) }}}}{{% else %}}{{{{ x }}}}{{% endif %}}{{% endmacro %}}{{{{ f(1, 40) }}}}",
        "[".repeat(40),
        "]".repeat(40)
    );
    let limits = JinjaLimits { recursion: 500, ..JinjaLimits::default() };
    let text = render_within(&leaf, limits).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(text, format!("{}1{}", "[".repeat(1600), "]".repeat(1600)));
}

#[test]
fn a_namespace_holds_a_copy() {
    assert_eq!(
        render("{% set ns = namespace(a=1) %}{% set ns.b = ns %}{% set ns.a = 2 %}{{ ns.b.a }}").unwrap(),
        "1"
    );
    let grows = "{% set ns = namespace(l=[]) %}{% for i in range(1500) %}{% set ns.l = ns.l + [i] %}{% endfor %}\
                 {{ ns.l | length }} {{ ns.l[1499] }}";
    assert_eq!(render(grows).unwrap(), "1500 1499");
}

#[test]
fn assignments_mean_what_they_mean_in_jinja() {
    for (source, expected) in [
        (
            "{% set ns = namespace(n=0) %}{% for m in [1, 2] %}{% set ns.n = ns.n + m %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        ("{%- set x = 'a %} b' -%}\n {{ x }}", "a %} b"),
        ("{%set x='a'if true else'b'%}{{x}}", "a"),
        ("{% set a, b = 1, 2 %}{{ a }}{{ b }}", "12"),
        ("{% set ns = namespace() %}{% set ns.a, b = 1, 2 %}{{ ns.a }}{{ b }}", "12"),
        ("{% set x %}<{{ 1 }}>{% endset %}{{ x }}", "<1>"),
        ("{% set x | upper %}abc{% endset %}{{ x }}", "ABC"),
        ("{% set x = (1,) -%} {{ x | length }}", "1"),
        ("{% set x = nothing %}{{ x is undefined }}", "True"),
        ("{% raw %}{% set x = 1 %}{% endraw %}", "{% set x = 1 %}"),
        ("{# {% set x = 1 %} #}{% set x = {'a': {'b': [1]}} %}{{ x.a.b[0] }}", "1"),
        ("{% macro f(y) %}<{{ y }}>{% endmacro %}{% set g = f %}{{ g(1) }}", "<1>"),
        (
            "{% for a in [1, 2] %}{% set outer = loop %}{% for b in [1] %}{{ outer.index }}{% endfor %}{% endfor %}",
            "12",
        ),
    ] {
        assert_eq!(render(source).unwrap_or_else(|error| panic!("{source}: {error}")), expected, "{source}");
    }
}
