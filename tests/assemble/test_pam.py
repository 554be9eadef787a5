"""PAM's common files from templates and profiles."""

from assemble.pam import parse_profile, render

UNIX = parse_profile("Name: Unix\nDefault: yes\nPriority: 256\nAuth-Type: Primary\nAuth:\n"
                     "\t[success=end default=ignore]\tpam_unix.so try_first_pass\nAuth-Initial:\n"
                     "\t[success=end default=ignore]\tpam_unix.so nullok\nSession-Type: Additional\nSession:\n"
                     "\trequired\tpam_unix.so\n")
LDAP = parse_profile("Name: LDAP\nDefault: yes\nPriority: 128\nAuth-Type: Primary\nAuth:\n"
                     "\t[success=end default=ignore]\tpam_ldap.so use\nSession-Interactive-Only: yes\n"
                     "Session-Type: Additional\nSession:\n\toptional\tpam_ldap.so x\n")
OFF = parse_profile("Name: Off\nDefault: no\nPriority: 512\nAuth-Type: Primary\nAuth:\n\trequired pam_off.so\n")


def test_jumps_lead_to_the_end_of_the_primary_block() -> None:
    text = render("$auth_primary\nauth requisite pam_deny.so\n$auth_additional\n# end\n", "auth", [LDAP, OFF, UNIX])
    assert text == ("auth\t[success=2 default=ignore]\tpam_unix.so nullok\n"
                    "auth\t[success=1 default=ignore]\tpam_ldap.so use\nauth requisite pam_deny.so\n# end\n")


def test_an_empty_primary_block_passes() -> None:
    template = "$session_primary\nx\n$session_additional\n"
    assert render(template, "session", [UNIX, LDAP]) == (
        "session\t[default=1]\t\t\tpam_permit.so\nx\nsession\trequired\tpam_unix.so \n"
        "session\toptional\tpam_ldap.so x\n")


def test_without_terminal() -> None:
    template = "$session_nonint_primary\n$session_nonint_additional\n"
    assert "ldap" not in render(template, "session", [UNIX, LDAP], interactive=False)
