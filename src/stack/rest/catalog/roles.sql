-- Settings of the roles that this session may switch to, which
-- `set local role` does not apply by itself. Those of the database come after
-- the general ones and so win.
select r.rolname::text as role, split_part(s.setting, '=', 1) as name,
  substr(s.setting, strpos(s.setting, '=') + 1) as value
from pg_catalog.pg_db_role_setting d
join pg_catalog.pg_roles r on r.oid = d.setrole
cross join unnest(d.setconfig) with ordinality as s (setting, place)
where d.setdatabase in (0, (select oid from pg_catalog.pg_database where datname = current_database()))
  and r.rolname <> current_user
  and pg_catalog.pg_has_role(current_user, r.oid, 'member')
  and exists (
    select from pg_catalog.pg_settings g
    where g.name = split_part(s.setting, '=', 1)
      and (g.context = 'user' or pg_catalog.has_parameter_privilege(current_user, g.name, 'set')))
order by r.rolname, d.setdatabase, s.place
